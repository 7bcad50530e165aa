"""The exported policy at work; it needs NumPy alone."""
