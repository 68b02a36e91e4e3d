"""edgeflash: from an image and a board to a card that comes up as a member; runs on an operator's machine."""
