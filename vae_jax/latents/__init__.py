"""What a trained code holds: principal directions and fidelity, paths and maps through it, statistics and probes."""
