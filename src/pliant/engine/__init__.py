"""What acts on hidden units and on whole parameters around each optimizer step; methods are presets of its parts."""
