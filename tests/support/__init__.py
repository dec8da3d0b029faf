"""What tests share: models, engines, stand-ins, oracles, and programs that tests start in processes of their own."""
