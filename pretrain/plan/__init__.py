"""What a recipe costs in time, memory and money, before its first step."""
