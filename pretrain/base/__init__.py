"""What everything else stands on: files, faults, ranks, seeds, progress."""
