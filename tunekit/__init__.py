"""tunekit: plan, then run."""
