"""What makes and tries a release; no part of the package."""
