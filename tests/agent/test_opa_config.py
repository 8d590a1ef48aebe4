import yaml

from reconciler.agent.opa_config import opa_config


def test_the_configuration_polls_the_agent_and_posts_its_status_to_it() -> None:
    config = yaml.safe_load(opa_config("http://127.0.0.1:8282", hold_seconds=20, labels={"app": "x: y"}))
    assert config == {
        "services": {"regops": {"url": "http://127.0.0.1:8282"}},
        "bundles": {
            "regops": {
                "service": "regops",
                "resource": "bundles/regops",
                "persist": False,
                "polling": {"min_delay_seconds": 1, "max_delay_seconds": 2, "long_polling_timeout_seconds": 20},
            }
        },
        "status": {"service": "regops"},
        "server": {
            "metrics": {
                "prom": {
                    "http_request_duration_seconds": {
                        "buckets": [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1],
                    }
                }
            }
        },
        "labels": {"app": "x: y"},
    }
