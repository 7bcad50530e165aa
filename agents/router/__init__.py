"""An OpenAI-compatible reverse proxy that places conversations on real engines."""
