"""Celery: tasks without a worker, and with real ones on Redis and RabbitMQ."""
