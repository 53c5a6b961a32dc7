"""What inventories/onprem.py has besides group_data/prod.py: the box at the office. docs/hybrid.md."""

# The driver that fits the cards and the CUDA build is chosen; what only a reboot makes effective, waits for you:
# --data gpu_reboot=True
gpu_reboot = False

# A directory beside deploy.py, or a git repository and what to deploy of it.
training_source = inference_source = "examples/forecast"
training_jobs = [
    {
        "name": "forecast",
        "command": ["python", "-m", "forecast.train"],
        "report": ["python", "-m", "forecast.report"],
        "model": "forecast",
        "schedule": "*-*-* 02:30",
    },
]
inference_module = "forecast.api:app"
inference_models = ["forecast"]
