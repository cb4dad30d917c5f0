"""Several processes that answer HTTP before one engine: `--api-server-count`.

    owner   the process that was started: binds the socket, owns the engine's process, starts and ends the fronts
    fronts  accept on the one socket; each does what the whole server does where it is alone
    core    the engine, as before a single front

What the fronts have in common lies in the owner's private directory: a table of numbers, metrics, stored responses, and
the sockets to the core.
"""
