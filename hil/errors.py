"""What a rig may fail with, by name: a report groups by `HilError.name`, and people read the text."""

from __future__ import annotations


class HilError(Exception):
    """Something of the rig is not as it has to be. `name` is short and lasting, the text says what, why, what next."""

    name = "rig"


class MissingProgram(HilError):
    name = "missing-program"


class MissingImage(HilError):
    """A kernel, an initrd or a root file system is not where it was."""

    name = "missing-image"


class BuildFailed(HilError):
    """A guest's image could not be made."""

    name = "build-failed"


class GuestDied(HilError):
    """QEMU ended without being asked to."""

    name = "guest-died"


class GuestStuck(HilError):
    """What a guest was to say or to do did not come in time."""

    name = "guest-stuck"


class CommandFailed(HilError):
    """A command, in a guest or here, ended with another status than 0."""

    name = "command-failed"


class NotReached(HilError):
    """Something of the mesh did not come about in time: a join, an answer, a listing."""

    name = "not-reached"


class BadReport(HilError):
    """What was to be a report is none, or one of another version."""

    name = "bad-report"


class UploadFailed(HilError):
    """A hub did not take a report."""

    name = "upload-failed"


class RigFileWrong(HilError):
    """A rig file: the text names file, line and key, what is wrong, and what is known."""

    name = "rig-file"


class DeadPort(HilError):
    """A serial port, a switch or a card reader is not there, or is somebody else's."""

    name = "dead-port"


class PowerFailed(HilError):
    """The power could not be switched."""

    name = "power"


class StorageFailed(HilError):
    """What a device starts from could not be written."""

    name = "storage"


class Reserved(HilError):
    """Somebody else has the rig."""

    name = "reserved"
