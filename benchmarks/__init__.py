"""Programs that measure speed: each against a plain reference, as ratios within one run."""
