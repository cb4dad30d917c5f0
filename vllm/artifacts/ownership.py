"""Who can have written a file, and who can read it: the one check behind all that is believed because of where it lies.

Compiled artifacts decide what is answered and, on some targets, run as code; KV blocks tell what prompts said. A hash
beside them guards against damage, not against a writer: the writer hashes anew. So their owners and modes are checked.
"""

from __future__ import annotations

import grp
import os
import pwd
import stat
from collections.abc import Iterable
from pathlib import Path

_WRITE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH
_ENTER_BY_OTHERS = stat.S_IXGRP | stat.S_IXOTH
_ANYTHING_BY_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def write_fault(path: Path) -> str:
    """Why somebody else may have written `path`; "" if only this user and the superuser can have.

    A group's right to write counts, unless the group holds its owner alone (as many systems set up, with a umask of
    002). A link is followed, and must lead into a directory in which others replace nothing. Raises OSError where
    there is nothing.
    """
    return _link_fault(path) or _owner_fault(path) or _mode_fault(path)


def write_fault_within(directory: Path, paths: Iterable[Path]) -> str:
    """The first `write_fault` of `directory` and of `paths`, which lie in it or below.

    Where the directory lets nobody else enter, the modes of what lies in it say nothing, only the owners do.
    """
    if fault := write_fault(directory):
        return fault
    is_closed = not directory.stat().st_mode & _ENTER_BY_OTHERS
    for path in paths:
        out_of_reach = is_closed and not path.is_symlink()
        if fault := _owner_fault(path) if out_of_reach else write_fault(path):
            return fault
    return ""


def _link_fault(path: Path) -> str:
    if not path.is_symlink():
        return ""
    place = Path(os.path.realpath(path)).parent
    fault = _owner_fault(place) or _mode_fault(place, is_place=True)
    return f"{path} is a link: {fault}" if fault else ""


def _owner_fault(path: Path) -> str:
    uid = path.stat().st_uid
    return "" if uid in (os.geteuid(), 0) else f"{path} belongs to {_user(uid)}, not to {_user(os.geteuid())}"


def _mode_fault(path: Path, is_place: bool = False) -> str:
    """is_place: of a directory it matters who can replace what lies there, which a sticky bit leaves to the owners."""
    found = path.stat()
    writers = 0 if is_place and found.st_mode & stat.S_ISVTX else found.st_mode & _WRITE_BY_OTHERS
    if not writers or (writers == stat.S_IWGRP and _is_own_group(found)):
        return ""
    return f"{path} can be written by others (mode {stat.S_IMODE(found.st_mode):04o})"


def privacy_fault(directory: Path) -> str:
    """Why `directory` is not one that this user owns and nobody else may enter; "" if it is. Links are not followed."""
    found = directory.lstat()
    if stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & _ANYTHING_BY_OTHERS:
        return ""
    return (
        f"{directory} must be a directory of {_user(os.geteuid())} that nobody else may enter (mode 0700); it has mode "
        f"{stat.S_IMODE(found.st_mode):04o} and belongs to {_user(found.st_uid)}"
    )


def _is_own_group(found: os.stat_result) -> bool:
    """Whether the group of a file is its owner's alone: it bears the owner's name, and nobody else is in it."""
    try:
        user, group = pwd.getpwuid(found.st_uid), grp.getgrgid(found.st_gid)
    except KeyError:
        return False
    return (
        found.st_uid != 0
        and group.gr_name == user.pw_name
        and group.gr_gid == user.pw_gid
        and set(group.gr_mem) <= {user.pw_name}
    )


def _user(uid: int) -> str:
    try:
        return f"user {pwd.getpwuid(uid).pw_name} ({uid})"
    except KeyError:
        return f"user {uid}"
