"""The study: the only code that knows this project's folders and params.yaml. Nothing else imports it but the notebooks."""
