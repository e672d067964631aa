"""Tables of links, brought by img2dataset."""
