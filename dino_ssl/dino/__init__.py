"""The method: losses, centering, schedules, student and teacher."""
