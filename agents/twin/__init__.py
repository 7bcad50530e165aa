"""The same conversations on real engines and on the simulator that was calibrated on them."""
