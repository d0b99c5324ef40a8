"""From a backbone to a task: what fine-tunings train, and the losses that they train with."""
