"""What uvicorn's logs leave out: requests for some paths, and the queries of all targets."""

from __future__ import annotations

import logging


def hide_from_access_log(paths: list[str]) -> None:
    """Leave requests for these paths out of uvicorn's access log."""
    hidden = {path.strip() for path in paths if path.strip()}

    def shown(record: logging.LogRecord) -> bool:
        arguments = record.args
        if not isinstance(arguments, tuple) or len(arguments) < 3:
            return True
        return str(arguments[2]).partition("?")[0] not in hidden

    logging.getLogger("uvicorn.access").addFilter(shown)


def hide_queries() -> None:
    """Leave the queries of targets out of uvicorn's logs: somebody may have put a key there."""
    for name, hide in (("uvicorn.access", _without_query), ("uvicorn.asgi", _without_scopes_query)):
        logger = logging.getLogger(name)
        if hide not in logger.filters:
            logger.addFilter(hide)


def _without_query(record: logging.LogRecord) -> bool:
    """record: client, method, target, version, status."""
    if isinstance(record.args, tuple) and len(record.args) >= 3:
        path, mark, _ = str(record.args[2]).partition("?")
        record.args = (*record.args[:2], path + mark + "..." * bool(mark), *record.args[3:])
    return True


def _without_scopes_query(record: logging.LogRecord) -> bool:
    """record: of --uvicorn-log-level trace, which may hold a scope."""
    if isinstance(record.args, tuple):
        record.args = tuple(
            {**each, "query_string": b"..."} if isinstance(each, dict) and each.get("query_string") else each
            for each in record.args
        )
    return True
