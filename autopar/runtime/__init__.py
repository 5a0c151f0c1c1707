"""What happens around a compiled module while it is used."""
