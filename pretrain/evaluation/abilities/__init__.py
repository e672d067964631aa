"""What a model can see, ability by ability, on pictures that this package draws itself."""
