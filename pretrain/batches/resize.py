"""How a picture of any shape becomes a square. No torch: options name it too."""

from typing import Literal

# shortest_side_crop: the centre square, bicubic. squash: the whole picture stretched to the square,
# bilinear, which CLIPA v2's configs evaluate by ("works better").
Resize = Literal["shortest_side_crop", "squash"]
