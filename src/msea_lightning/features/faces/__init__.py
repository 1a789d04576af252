"""Faces in a picture: where they are, 468 points of one, its pose, its shape, its emotion."""
