"""A local web page that searches a dataset by text or by a picture."""
