"""A hook of docs/mkdocs.yml: links to files of the repository that are no part of the site lead to GitHub."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

LINK = re.compile(r"(\]\()([^)\s#:]+)((?:#[^)\s]*)?\))")  # of a relative path: ](path#anchor)


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Return the page with its links changed; a link to a file that does not exist stays, so that the strict build
    fails.
    """

    def changed(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(page.file.src_uri), match[2]))
        file, there = files.get_file_from_path(path), Path(config.docs_dir, path)
        if path.startswith("..") or file is not None and file.inclusion.is_included() or not there.exists():
            return match[0]
        return f"{match[1]}{config.extra['repository']}/{'tree' if there.is_dir() else 'blob'}/main/{path}{match[3]}"

    return LINK.sub(changed, markdown)
