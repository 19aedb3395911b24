"""Jobs and trainers, registration, gate, promotion."""
