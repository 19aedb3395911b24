"""The commands of a person."""
