"""What borgmatic and Borg would archive of the staging copies, by their own judgement."""
