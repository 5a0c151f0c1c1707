"""What was made before, found again by content: plans, traced programs, joint graphs."""
