"""Commands that measure speed, memory, scale, and the results of experiments over several seeds."""
