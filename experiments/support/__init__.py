"""What the programs share: how a checkpoint is loaded (`judged`), what a run reports (`report`), pictures and films."""
