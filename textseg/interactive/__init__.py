"""The parts of an interactive session: marks, engines that answer them, and what is kept of a step."""
