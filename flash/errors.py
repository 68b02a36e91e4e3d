"""What ends a command of edgeflash."""


class FlashError(Exception):
    """`what: why. What next.`, for the operator; the command ends with status 1."""
