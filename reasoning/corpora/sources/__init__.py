"""Sources of a corpus: folders, and source packages whose archives are read in memory, never unpacked or executed."""
