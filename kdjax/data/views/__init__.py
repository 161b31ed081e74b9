"""What a network sees of an image: crops, flips, rotations, colours, erasing and mixing."""
