"""What the import of a module asks of the system that Windows lacks, read from its source."""

from __future__ import annotations

import ast
from collections.abc import Iterator

MODULES = {"resource", "fcntl", "pwd", "grp", "termios", "pty", "syslog"}
NAMES = {
    "signal": {"SIGKILL", "SIGHUP", "SIGALRM", "SIGQUIT", "SIGCHLD", "SIGUSR1", "SIGUSR2", "SIGPROF"}
    | {"setitimer", "alarm", "ITIMER_REAL", "ITIMER_PROF"},
    "os": {"fork", "getuid", "geteuid", "getgid", "killpg", "setsid", "uname", "getloadavg"}
    | {"sched_getaffinity", "mkfifo", "WNOHANG"},
}


def absent_on_windows(source: str) -> list[str]:
    """The lines of a module that fail on Windows when it is imported, and what they ask for."""
    return [f"line {node.lineno}: {what}" for node in _run_at_import(ast.parse(source)) for what in _asked(node)]


def _run_at_import(node: ast.AST) -> Iterator[ast.expr | ast.stmt]:
    """Nodes outside of functions' bodies and of what is tried or depends on the system."""
    for part in ast.iter_child_nodes(node):
        if isinstance(part, (ast.FunctionDef, ast.AsyncFunctionDef)):
            defaults = [*part.args.defaults, *filter(None, part.args.kw_defaults)]
            yield from _run_at_import(ast.Tuple([*part.decorator_list, *defaults]))
        elif not _left_out(part):
            if isinstance(part, (ast.expr, ast.stmt)):
                yield part
            yield from _run_at_import(part)


def _left_out(node: ast.AST) -> bool:
    if isinstance(node, (ast.If, ast.IfExp)):
        return any(word in ast.unparse(node.test) for word in ("sys.platform", "os.name", "hasattr", "TYPE_CHECKING"))
    return isinstance(node, ast.Lambda) or (isinstance(node, ast.Try) and _catches_absence(node))


def _catches_absence(tried: ast.Try) -> bool:
    caught = " ".join(ast.unparse(handler.type) for handler in tried.handlers if handler.type)
    return any(name in caught for name in ("ImportError", "ModuleNotFoundError", "AttributeError"))


def _asked(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [name.name for name in node.names if name.name in MODULES]
    if isinstance(node, ast.ImportFrom):
        if node.module in MODULES:
            return [node.module]
        return [f"{node.module}.{name.name}" for name in node.names if name.name in NAMES.get(node.module or "", ())]
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        found = node.attr in NAMES.get(node.value.id, ())
        return [f"{node.value.id}.{node.attr}"] if found else []
    return []
