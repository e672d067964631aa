"""Pictures: limits, tiers, JPEG files taken apart."""
