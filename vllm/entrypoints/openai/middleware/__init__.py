"""Plain ASGI middleware: one file, one duty. Order, outermost first: access, request id, CORS, limits, key, the
application."""
