"""The page's server without a browser: numbers to the bit, hostile requests, tables, the exported page, the command."""

import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.request

import numpy as np
import psutil
import pytest

import widelimit as wl
from commands import invoke
from widelimit.cli import explore
from widelimit.cli.explorer import export, finite, pages, pool, scene, server, settings, uploads, wire

POINTS = [[-2.0, 0.7], [-0.5, -0.5], [1.0, 0.2]]
CHOSEN = {"inputs": "circle", "depth": 2, "activation": "relu", "weight_std": 1.4, "bias_std": 0.3, "points": POINTS}
X = scene.embed(np.array(POINTS)[:, 0], "circle")
Y = np.array(POINTS)[:, 1]
Z = scene.embed(scene.GRID, "circle")
NET = wl.mlp(depth=2, weight_std=1.4, bias_std=0.3)
EPS = np.finfo(np.float64).eps


@pytest.fixture(scope="module")
def port():
    """The port of a server in this process."""
    listener, stop = server.listen(0), threading.Event()
    server.Handler.timeout = 1.0
    thread = threading.Thread(target=server.run, args=(listener, stop, pages.START), daemon=True)
    thread.start()
    yield listener.getsockname()[1]
    stop.set()
    thread.join(5)
    listener.close()
    server.Handler.timeout = server.SECONDS


def exchange(port, request, wait=10.0):
    """All bytes that the server sends for these bytes."""
    with socket.create_connection(("127.0.0.1", port), timeout=wait) as connection:
        with contextlib.suppress(OSError):
            connection.sendall(request)
        found = b""
        with contextlib.suppress(ConnectionResetError):
            while data := connection.recv(65536):
                found += data
    return found


def ask(port, method, path, body=b"", **headers):
    """Status, headers as text, and body of an answer."""
    given = {"Host": f"127.0.0.1:{port}", "Content-Type": "application/json", "Content-Length": len(body)}
    given |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in given.items() if value is not None)]
    head, _, data = exchange(port, "\r\n".join(lines).encode() + b"\r\n\r\n" + body).partition(b"\r\n\r\n")
    return int(head.split()[1]), head.decode(), data


def refused(answer):
    """The reason of a refusal, which is one short line of JSON."""
    _, head, data = answer
    assert "application/json" in head
    assert data.count(b"\n") == 1
    reason = json.loads(data)["error"]
    assert 0 < len(reason) < 400
    assert "Traceback" not in reason
    return reason


# --- numbers


def learned(rule, **more):
    return scene.scene(settings.settings(CHOSEN | {"rule": rule} | more))


def test_kernels_are_those_of_the_library_to_the_bit():
    found = learned("descent")
    rows = np.concatenate([scene.GRID, np.array(POINTS)[:, 0], np.zeros(settings.MOST_POINTS - 3)])
    sigma, theta = wl.limits(NET).gram(scene.embed(rows, "circle"))
    np.testing.assert_array_equal(found["prior_sd"] ** 2, np.sqrt(np.diagonal(sigma)[:121]) ** 2)
    held = scene.matrices(settings.settings(CHOSEN).network, tuple(np.array(POINTS)[:, 0]))
    np.testing.assert_array_equal(held.ntk, theta)
    sigma, theta = wl.limits(NET).gram(scene.embed(scene.ANGLES, "circle"))
    np.testing.assert_array_equal(found["nngp"], sigma[48])
    np.testing.assert_array_equal(found["ntk"], theta[48])
    assert found["ntk"][48] > found["nngp"][48]


def test_what_is_learned_is_what_the_library_says_of_the_points():
    """By other calls: kernels of the points and the grid, where the page has one matrix for both.

    Kernels differ by some eps; a posterior by that times the condition of K(X, X) + noise, below 1e3 here.
    """
    tolerance = 64 * EPS * 1e3
    bayes, post = learned("bayes"), wl.posterior(wl.nngp(NET), X, Y, noise=0.1**2)
    mean, variance = post.predict(Z)
    np.testing.assert_allclose(bayes["mean"][0], mean, rtol=0, atol=tolerance)
    np.testing.assert_allclose(bayes["sd"][0] ** 2, variance, rtol=0, atol=tolerance)
    np.testing.assert_allclose(bayes["evidence"], post.log_marginal_likelihood(), rtol=tolerance)
    descent, ensemble = learned("descent"), wl.trained_ensemble(NET, X, Y)
    np.testing.assert_allclose(descent["mean"], ensemble.mean(Z, scene.TIMES), rtol=0, atol=tolerance)
    np.testing.assert_allclose(descent["sd"] ** 2, ensemble.variance(Z, scene.TIMES), rtol=0, atol=tolerance)
    assert np.abs(descent["mean"][-1] - bayes["mean"][0]).max() > 0.01  # two rules, not one


def test_one_network_is_the_same_before_and_after():
    descent, start = learned("descent"), learned("bayes")["prior_samples"]
    np.testing.assert_allclose(descent["samples"][0], start, rtol=0, atol=1e-12)
    given = int(np.argmin(np.abs(scene.GRID - POINTS[1][0])))
    step = scene.GRID[1] - scene.GRID[0]
    slope = np.abs(np.diff(descent["samples"][-1], axis=1)).max() / step
    assert np.abs(descent["samples"][-1][:, given] - POINTS[1][1]).max() <= slope * step  # all go through the point


def test_without_points_nothing_is_learned():
    found = learned("descent", points=[])
    np.testing.assert_array_equal(found["mean"], 0)
    np.testing.assert_array_equal(found["sd"][0], found["prior_sd"])


def deviations(networks, clock):
    """Standard errors between the networks' mean and the limit's at `clock` times their own time, during training."""
    frames = [0, 2, 4, 8, len(networks["times"]) - 1]
    ensemble, times = wl.trained_ensemble(NET, X, Y), clock * networks["times"][frames]
    outputs = networks["outputs"][frames].astype(np.float64)
    sd = np.sqrt(ensemble.variance(Z, times)) + 0.05
    return np.abs(outputs.mean(axis=1) - ensemble.mean(Z, times)) * np.sqrt(outputs.shape[1]) / sd


def test_finite_networks_are_trained_towards_the_limit(monkeypatch):
    """The mean of 60 networks of width 64 is within 3 standard errors; with a clock of another speed it is not."""
    monkeypatch.setitem(finite.EFFORTS, 64, finite.Effort(60, 150))
    networks = finite.finite(settings.settings(CHOSEN | {"rule": "descent"}), 64)
    assert networks["outputs"].shape == (len(networks["times"]), 60, 121)
    np.testing.assert_allclose(networks["times"][1], networks["rate"])
    assert deviations(networks, 1.0).max() < 3.0
    assert deviations(networks, 2.0).max() > 4.0
    assert deviations(networks, 0.5).max() > 4.0


def test_arrays_arrive_to_the_bit(port):
    of = CHOSEN | {"rule": "bayes"}
    status, _, body = ask(port, "POST", "/api/scene", json.dumps(of).encode())
    assert status == 200
    found = wire.decode(json.loads(body))
    for name, value in scene.scene(settings.settings(of)).items():
        np.testing.assert_array_equal(found[name], value)
        assert np.any(np.nextafter(found[name], np.inf) != value)
    small = wire.decode(wire.encode({"a": np.array([-2.0, 0.3, 1.0])}, "int16"))["a"]
    np.testing.assert_allclose(small, [-2.0, 0.3, 1.0], atol=2.0 / 2**16)


# --- bad input


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"depth": 7}, "depth must be below 7, got 7"),
        ({"depth": True}, "depth must be an integer, got True"),
        ({"depth": 2.5}, "depth must be an integer"),
        ({"activation": "rleu"}, "activation must be one of relu"),
        ({"activation": ["relu"]}, "activation"),
        ({"weight_std": "big"}, "weight_std must be a real number, got 'big'"),
        ({"weight_std": 1e400}, "Infinity is not a number"),
        ({"weight_std": -1}, "weight_std"),
        ({"bias_std": None}, "bias_std"),
        ({"noise_std": -0.1}, "noise_std"),
        ({"inputs": "sphere"}, "inputs must be one of line, circle"),
        ({"rule": "guess"}, "rule must be one of bayes, descent"),
        ({"points": {"x": 1}}, "points must be a list of pairs"),
        ({"points": [[0.0]]}, "points must be pairs"),
        ({"points": [[0.0, "a"]]}, "y of points"),
        ({"points": [[9.0, 0.0]]}, "x of points"),
        ({"points": [[0.0, 0.0]] * 129}, "at most 128"),
        ({"points": [[0.0, 0.0], [0.0, 1.0]], "noise_std": 0.0}, "have the input 0 and different outputs"),
        ({"dpeth": 3}, "no setting 'dpeth'"),
    ],
)
def test_a_bad_value_is_one_line(port, change, words):
    body = json.dumps(CHOSEN | {"rule": "bayes"} | change).encode()
    answer = ask(port, "POST", "/api/scene", body)
    assert answer[0] == 400
    assert words in refused(answer)


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"3", b'{"depth": NaN}', b"\xff\xfe", b"[" * 50_000, b'{"weight_std": ' + b"9" * 5000 + b"}"],
)
def test_what_is_no_object_of_settings_is_one_line(port, body):
    for path in ("/api/scene", "/api/networks"):
        answer = ask(port, "POST", path, body)
        assert answer[0] == 400
        refused(answer)


@pytest.mark.parametrize("width", [None, 5, 10**9, "64", [64], True])
def test_a_bad_width_is_one_line(port, width):
    answer = ask(port, "POST", "/api/networks", json.dumps(CHOSEN | {"width": width}).encode())
    assert answer[0] == 400
    assert "width" in refused(answer)


# --- hostile requests


def test_the_page_and_its_files(port):
    for path, (_, kind) in server.FILES.items():
        status, head, body = ask(port, "GET", path)
        assert status == 200
        assert kind in head
        assert "default-src 'none'" in head
        assert body
        assert re.findall(rb"""(?:src|href)=["'](?:https?:)?//""", body) == []


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 403),
        ({"Host": "evil.example:80"}, 403),
        ({"Host": ""}, 403),
        ({"Host": None}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://localhost:1"}, 403),
        ({"Sec_Fetch_Site": "cross-site"}, 403),
        ({"Content_Type": "text/plain"}, 415),
        ({"Content_Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content_Length": None}, 411),
        ({"Content_Length": "-1"}, 411),
        ({"Content_Length": "1e3"}, 411),
        ({"Transfer_Encoding": "chunked"}, 411),
        ({"Content_Length": 100 * 2**20}, 413),
        ({"Content_Length": "9" * 400}, 413),
    ],
)
def test_other_hosts_origins_types_and_lengths_are_refused(port, headers, status):
    answer = ask(port, "POST", "/api/scene", b"{}", **headers)
    assert answer[0] == status
    refused(answer)


def test_own_host_and_origin_are_served(port):
    for name in ("127.0.0.1", "localhost"):
        own = f"{name}:{port}"
        body = json.dumps(CHOSEN | {"points": []}).encode()
        assert ask(port, "POST", "/api/scene", body, Host=own, Origin=f"http://{own}")[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        "/../server.py",
        "/page/../../server.py",
        "/%2e%2e/server.py",
        "/..%2fserver.py",
        "//etc/passwd",
        "/etc/passwd",
        "/explorer.css/..",
        "/explorer.css%00",
        "/?x",
        "http://evil.example/",
        "/api/scene",
        "/" + "a" * 5000,
    ],
)
def test_paths_that_are_no_file_of_the_page_are_refused(port, path):
    answer = ask(port, "GET", path)
    assert answer[0] == 404
    refused(answer)


NO_REQUESTS = {
    "empty": b"\r\n\r\n",
    "text": b"nonsense\r\n\r\n",
    "version": b"GET / HTTP/9.9\r\n\r\n",
    "long": b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n",
    "headers": b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 200 + b"\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00",
    "OPTIONS": b"OPTIONS / HTTP/1.1\r\n\r\n",
    "DELETE": b"DELETE /api/scene HTTP/1.1\r\n\r\n",
}


@pytest.mark.parametrize("what", NO_REQUESTS)
def test_what_is_no_request_ends_without_a_traceback(port, what, capfd):
    found = exchange(port, NO_REQUESTS[what])
    assert b"Traceback" not in found
    assert b" 200 " not in found.partition(b"\r\n")[0]
    assert capfd.readouterr() == ("", "")
    assert ask(port, "GET", "/")[0] == 200


def test_a_large_body_is_refused_and_not_kept(port):
    before = psutil.Process().memory_info().rss
    body = bytes(100 * 2**20)
    held = psutil.Process().memory_info().rss
    head = f"POST /api/table HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: text/csv\r\n"
    found = exchange(port, f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    assert found == b"" or b" 413 " in found.partition(b"\r\n")[0]
    assert psutil.Process().memory_info().rss - max(before, held) < 150 * 2**20


def test_a_thousand_requests_at_once_are_served_or_refused(port):
    threads = threading.active_count()
    request = f"GET /explorer.css HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode()
    connections, statuses = [], []
    before = psutil.Process().memory_info().rss
    for _ in range(1000):
        connection = socket.socket()
        connection.setblocking(False)
        connection.connect_ex(("127.0.0.1", port))
        connections.append(connection)
    assert threading.active_count() <= threads
    for connection in connections:
        connection.settimeout(15)
        with contextlib.suppress(OSError):
            connection.sendall(request)
    for connection in connections:
        with connection, contextlib.suppress(OSError):
            statuses.append(connection.recv(64).split(b" ", 2)[1:2])
    answered = [status[0] for status in statuses if status]
    assert set(answered) <= {b"200", b"503"}
    assert answered.count(b"200") >= pool.THREADS
    assert psutil.Process().memory_info().rss - before < 100 * 2**20
    assert ask(port, "GET", "/")[0] == 200


# --- tables


def test_a_table_becomes_points():
    found = uploads.points(b"hour,temperature\n10,300\n20,310\n12,290\n")
    x, y = np.array(found["points"]).T
    back = [found[name]["center"] + found[name]["scale"] * values for name, values in (("x", x), ("y", y))]
    np.testing.assert_allclose(back, [[10, 12, 20], [300, 290, 310]], rtol=1e-12)
    assert (found["x"]["name"], found["rows"]) == ("hour", 3)
    assert np.abs(x).max() <= settings.EDGE
    many = uploads.points(b"x;y\n" + b"".join(b"%d;%d\n" % (k, k % 7) for k in range(500)))
    assert (len(many["points"]), many["rows"]) == (settings.MOST_POINTS, 500)
    settings.settings({"points": many["points"]})


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty"),
        (b"x,y\n", "no rows"),
        (b"x\n1\n2\n", "must have two columns"),
        (b"x,y,z\n1,2,3\n", "must have two columns"),
        (b"x,y\n1,a\n2,b\n", "'y' is not of numbers"),
        (b"x,y\n1,2\n2,\n", "missing"),
        (b"x,y\n1,2\n1,3\n", "one value only"),
        (b"x,y\n1,1e308\n2,-1e308\n3,1.7e308\n4,1.7e308\n", "too large"),
        (b"\x00\x01binary", "binary"),
        (b"\xff\xfex,y\n1,2\n", "UTF-8"),
        (b'x,y\n"1,2\n', "quotation"),
    ],
)
def test_a_bad_table_is_one_line_that_names_no_folder(port, data, words):
    answer = ask(port, "POST", "/api/table", data, Content_Type="text/csv")
    assert answer[0] == 400
    reason = refused(answer)
    assert words in reason
    assert "/" not in reason.replace("iconv -f latin1 -t utf-8", "")


# --- the exported page


FEW = {"inputs": ["circle"], "depth": [2], "activation": ["relu"], "weight_std": [1.4], "bias_std": [0.3],
       "noise_std": [0.1], "width": [64]}  # fmt: skip


def test_an_exported_page_needs_nothing_else(monkeypatch):
    monkeypatch.setitem(finite.EFFORTS, 64, finite.Effort(60, 150))
    start, steps = pages.START | CHOSEN | {"x": {"name": "</script>"}}, []
    page = export.export(start, lambda *step: steps.append(step), FEW).decode()
    assert [step[1] for step in steps] == [0, 1, 2]
    assert re.findall(r"""(?:src|href)=["'](?!data:)""", page) == []
    assert page.count("</script>") == 4
    document = json.loads(re.search(r'id="page">(.*?)</script>', page, flags=re.DOTALL)[1])
    numbers = document["numbers"]
    assert sorted(numbers) == [f"circle 2 relu 1.4 0.3 {rest}" for rest in ("bayes 0.1", "descent", "width 64")]
    found, exact = wire.decode(numbers["circle 2 relu 1.4 0.3 descent"]), learned("descent")
    np.testing.assert_array_equal(found["times"], exact["times"][::2])
    assert found["times"][-1] == np.inf
    networks = wire.decode(numbers["circle 2 relu 1.4 0.3 width 64"])
    for t in scene.TIMES[::2][scene.TIMES[::2] <= networks["times"][-1]]:  # a state for each, to half a step
        assert np.abs(networks["times"] - t).min() <= 0.51 * networks["rate"]
    unit = np.abs(exact["mean"]).max() / wire.STEPS
    np.testing.assert_allclose(found["mean"], exact["mean"][::2], rtol=0, atol=unit)


# --- the command


def test_a_port_that_is_taken_is_one_line(port):
    code, out, err = invoke("explore", "--port", port, "--no-browser")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"--port {port}: cannot be opened" in err
    assert "--port 0" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["missing.csv"], "no such file"),
        (["--export", "page.pdf"], "end the name in .html"),
        (["--port", "70000"], "65535"),
    ],
)
def test_bad_arguments_are_one_line(tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    code, _, err = invoke("explore", *arguments, *(() if "--export" in arguments else ("--no-browser",)))
    assert (code, err.count("\n")) == (2, 1)
    assert words in err


def test_export_writes_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "CHOICES", FEW)
    monkeypatch.setattr(export, "_jobs", lambda start, choices: [("a", dict)])
    table = tmp_path / "t.csv"
    table.write_text("hour,y\n1,2\n3,4\n")
    code, out, err = invoke("explore", table, "--export", tmp_path / "page.html", "--json")
    assert (code, err) == (0, "")
    page = (tmp_path / "page.html").read_bytes()
    assert json.loads(out) == {"path": str(tmp_path / "page.html"), "bytes": len(page)}
    assert b'"name":"hour"' in page


def test_without_a_browser_there_is_one_line(monkeypatch):
    import webbrowser

    monkeypatch.setattr(webbrowser, "get", lambda: webbrowser.GenericBrowser("lynx"))
    assert not explore._opened("http://127.0.0.1:1/")
    monkeypatch.setattr(server, "run", lambda *_: None)
    code, out, err = invoke("explore", "--port", 0)
    assert code == 0
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/ shows .*\n", out)
    assert err == "note: no browser was found; open the address yourself, or pass --no-browser.\n"


def test_ctrl_c_ends_it_with_one_line():
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a background job ignores it
    code += "from widelimit.cli import main; main()"
    command = [sys.executable, "-c", code, "--no-cache", "explore", "--no-browser", "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        text = ""
        while "}" not in text:
            text += process.stdout.readline()
        with urllib.request.urlopen(json.loads(text)["url"], timeout=30) as answer:
            assert answer.status == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == 130
        assert process.stderr.read() == "widelimit: interrupted.\n"
