"""What agents do in games and prompts, exactly and by sampling."""
