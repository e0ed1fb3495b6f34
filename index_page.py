"""README.md as a package index shows it: there a link to a file of the repository leads nowhere.

setup.py makes this text the package's long description.
"""

import re
import runpy
from pathlib import Path

ROOT = Path(__file__).parent
# Code, which stays; or a link or picture of a file, not of a section of the page (#...) or a URL.
CODE_OR_LINK = re.compile(
    r"```.*?```|`[^`]*`|(?P<picture>!?)\[(?P<text>[^\]]*)\]\((?!#|\w+:)(?P<path>[^)]+)\)", re.DOTALL
)


def repository() -> str | None:
    """The URL under [project.urls] in pyproject.toml, or None if it names none."""
    found = re.search(r'^Repository = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.M)
    return found and found[1]


def index_page() -> str:
    """The README with links that work outside the repository."""
    version = runpy.run_path(str(ROOT / "vqvae_fast" / "_version.py"))["__version__"]
    return with_links_to((ROOT / "README.md").read_text(encoding="utf-8"), repository(), version)


def with_links_to(readme: str, repository: str | None, version: str) -> str:
    """The text with absolute links and pictures, or with words in their place.

    Args:
        readme: Markdown.
        repository: a URL under which ``blob/TAG/PATH`` shows a file and ``raw/TAG/PATH`` is its
            content, as on GitHub; None leaves the text of each link, and of each picture the
            description and the path.
        version: the tag is this number after a v.
    """

    def replacement(link: re.Match[str]) -> str:
        text, path = link["text"], link["path"]
        if path is None:
            return link[0]
        if repository is not None:
            kind = "raw" if link["picture"] else "blob"
            return f"{link['picture']}[{text}]({repository}/{kind}/v{version}/{path})"
        return f"*Picture {path}: {text}*" if link["picture"] else text

    return CODE_OR_LINK.sub(replacement, readme)
