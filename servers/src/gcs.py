# The XML protocol of Google Cloud Storage on moto's S3: the same requests, with other names of headers.
import sys

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple

SCOPE = "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=none"


class Gcs:
    def __init__(self, s3):
        self.s3 = s3

    def __call__(self, environ, start_response):
        environ["HTTP_AUTHORIZATION"] = SCOPE
        generation = environ.pop("HTTP_X_GOOG_IF_GENERATION_MATCH", None)
        if generation == "0":
            environ["HTTP_IF_NONE_MATCH"] = "*"
        elif generation is not None:
            start_response("501 Not Implemented", [])
            return [b"only generation 0 is known here"]

        def start(status, headers, exc_info=None):
            return start_response(status, [*headers, ("x-goog-generation", "1")], exc_info)

        return self.s3(environ, start)


run_simple("127.0.0.1", int(sys.argv[1]), Gcs(DomainDispatcherApplication(create_backend_app)), threaded=True)
