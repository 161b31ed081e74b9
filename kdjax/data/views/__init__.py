"""Views: how images are augmented with crops, flips, rotations, colours, erasing and mixing."""
