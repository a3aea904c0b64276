# dsync and the worker of docker-compose.yml, built from the checkout.
ARG PYTHON_IMAGE=python:3.13-slim
FROM ${PYTHON_IMAGE}
COPY pyproject.toml README.md LICENSE /opt/dsync/
COPY dsync /opt/dsync/dsync
RUN pip install --no-cache-dir --root-user-action=ignore /opt/dsync
WORKDIR /dsync
COPY examples/compose_worker.py examples/
CMD ["python", "-u", "examples/compose_worker.py"]
