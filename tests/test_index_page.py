"""The README on a package index: links and pictures lead somewhere, or are words."""

import re
import runpy
from pathlib import Path

PAGE = runpy.run_path(str(Path(__file__).parents[1] / "index_page.py"))
README = """\
See [the proof](docs/proof.md#bound), [below](#below), [CI][ci] and [torch](https://pytorch.org).

![Many
codes](docs/codes.png)

`indices[0](z)` or [`code`](csrc/README.md)

```python
indices[0](z)
```
"""


def test_with_a_repository_links_lead_to_the_files_of_the_version():
    text = PAGE["with_links_to"](README, "https://example.org/vq", "1.2.3")
    assert "[the proof](https://example.org/vq/blob/v1.2.3/docs/proof.md#bound)" in text
    assert "![Many\ncodes](https://example.org/vq/raw/v1.2.3/docs/codes.png)" in text
    assert "[below](#below), [CI][ci] and [torch](https://pytorch.org)" in text


def test_without_a_repository_there_are_words():
    assert PAGE["with_links_to"](README, None, "1.2.3") == (
        "See the proof, [below](#below), [CI][ci] and [torch](https://pytorch.org).\n\n"
        "*Picture docs/codes.png: Many\ncodes*\n\n"
        "`indices[0](z)` or `code`\n\n```python\nindices[0](z)\n```\n"
    )


def test_our_readme_has_no_link_that_leads_nowhere():
    page = PAGE["index_page"]()
    targets = re.findall(r"\]\(([^)]*)\)", page)
    assert targets
    assert [t for t in targets if not t.startswith(("#", "https://"))] == []
    sections = {
        re.sub(r"[^\w -]", "", h).replace(" ", "-").lower()
        for h in re.findall(r"^#+ (.*)$", page, re.M)
    }
    assert {t[1:] for t in targets if t.startswith("#")} <= sections
