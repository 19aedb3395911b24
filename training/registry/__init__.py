"""Jobs and their runners, registration, gate, decisions, approval, promotion, explanation."""
