"""The stack: which role in which stage. A host gets the roles whose groups it is in.

    pyinfra inventories/prod.py deploy.py
"""

from groundwork.preflight import preflight
from groundwork.stages import stage
from operations.lock import lock
from tasks.app import app
from tasks.base import base
from tasks.chromadb import chromadb
from tasks.docker import docker
from tasks.gpu import gpu
from tasks.inference import inference
from tasks.link import link
from tasks.mongodb import mongodb
from tasks.nginx import nginx
from tasks.packages import packages
from tasks.redis import redis
from tasks.training import training

preflight()
lock()

stage("host")
packages()
base()
link()
gpu()
docker()

stage("data")
mongodb()
redis()
chromadb()

stage("application")
app()
inference()
training()

stage("edge")
nginx()
