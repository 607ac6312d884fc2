"""One file a verb of `python -m vae_jax VERB`: its flags, and a `main` that calls the library."""
