"""Looks at finished pages: site_checks.py [folder ...], by default _site and reports/ravdess. Prints what fails.

Links, pictures and anchors are checked by reading the files. Console errors, pictures that can't be drawn and sideways
scrolling are seen in headless Chromium, without a network, at the widths of a desk and of a phone.
"""
import argparse, base64, json, os, re, shutil, subprocess, sys, tempfile, time, urllib.request
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parent.parent
WIDTHS = (1280, 390)
LOADING = ('img', 'script', 'iframe', 'source', 'video', 'audio')


# --- what can be read in the files

class Page(HTMLParser):
    "The anchors of a page, and what it refers to."
    def __init__(self, path):
        super().__init__()
        self.anchors, self.links, self.loaded = {''}, [], []
        self.text = path.read_text(encoding='utf-8')
        self.feed(self.text)

    def handle_starttag(self, tag, attributes):
        has = dict(attributes)
        self.anchors |= {has[k] for k in ('id', 'name') if has.get(k)}
        if tag == 'a' and has.get('href') is not None: self.links.append(has['href'])
        if tag in LOADING and has.get('src'): self.loaded.append(has['src'])
        if tag == 'link' and has.get('rel') != 'canonical' and has.get('href'): self.loaded.append(has['href'])


def target_of(link, path):
    "The file and the anchor that a link of a page means."
    parts = urlsplit(link)
    file = path if not parts.path else (path.parent / unquote(parts.path))
    return Path(os.path.normpath(file / 'index.html' if file.is_dir() else file)), parts.fragment


def faults_of(path, pages, folder):
    "Links of a page that lead nowhere, what it loads from elsewhere, and names of this machine."
    page = pages[path]
    for link in page.links + page.loaded:
        if re.match(r'(?i)data:|mailto:', link): continue
        if re.match(r'(?i)[a-z]+:|//', link):
            if link in page.loaded: yield f'loads {link[:80]} from the network'
            continue
        file, anchor = target_of(link, path)
        if not file.is_file(): yield f'{link} leads to no file'
        elif not file.is_relative_to(folder): yield f'{link} leads out of the folder'
        elif file in pages and not {anchor, unquote(anchor)} & pages[file].anchors:
            yield f'{link}: the page has no such anchor'
    if str(ROOT) + '/' in page.text: yield 'names a folder of this machine'


def read_faults(folder):
    "All faults that the files of a site show."
    whole = [path for path in sorted(folder.rglob('*.html')) if not {'_static', 'parts'} & set(path.parts)]  # parts: of pages
    pages = {path: Page(path) for path in whole}
    if not pages: return [f'{folder} holds no page']
    found = [(path, fault) for path in pages for fault in dict.fromkeys(faults_of(path, pages, folder))]
    return [f'{path.relative_to(folder)}: {fault}' for path, fault in found]


# --- what only a browser sees

def chromium():
    "The browser's program, or None."
    return next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)


# pictures are waited for, some seconds at most
MEASURE = """new Promise(done => {
  const found = [...document.images], left = found.filter(i => { i.loading = 'eager'; return !i.complete; });
  const settled = left.map(i => new Promise(next => { i.onload = i.onerror = next; }));
  setTimeout(done, 20000);
  Promise.all(settled).then(done);
}).then(() => ({
  wide: document.documentElement.scrollWidth,
  missing: [...document.images].filter(i => !i.naturalWidth).map(i => i.getAttribute('src'))}))"""


class Browser:
    "One tab of headless Chromium, steered by its own protocol; no name of a server resolves in it."
    def __init__(self, program, patience=120):
        import websocket
        self.profile, self.count, self.events = tempfile.mkdtemp(), 0, []
        options = ['--headless=new', '--remote-debugging-port=0', '--disable-gpu', '--no-first-run']
        options += ['--hide-scrollbars', '--host-resolver-rules=MAP * ~NOTFOUND', f'--user-data-dir={self.profile}']
        if os.geteuid() == 0: options.append('--no-sandbox')  # Chromium refuses to sandbox root
        quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.process = subprocess.Popen([program, *options, 'about:blank'], **quiet)
        port = self.port(patience)
        with urllib.request.urlopen(f'http://127.0.0.1:{port}/json', timeout=patience) as answer:
            tab = next(t for t in json.load(answer) if t['type'] == 'page')
        self.socket = websocket.create_connection(tab['webSocketDebuggerUrl'], timeout=patience, suppress_origin=True)
        for domain in ('Page', 'Runtime', 'Log'): self.ask(f'{domain}.enable')

    def port(self, patience):
        "The port of the protocol, which Chromium writes into its profile when it is ready."
        told, began = Path(self.profile) / 'DevToolsActivePort', time.monotonic()
        while not (told.exists() and told.read_text().strip()):
            if self.process.poll() is not None or time.monotonic() - began > patience:
                raise SystemExit('error: Chromium does not start')
            time.sleep(.1)
        return told.read_text().split()[0]

    def __enter__(self): return self

    def __exit__(self, *_):
        self.socket.close(); self.process.terminate(); self.process.wait(20)
        shutil.rmtree(self.profile, ignore_errors=True)

    def hear(self):
        "The next message; events are kept."
        message = json.loads(self.socket.recv())
        if 'method' in message: self.events.append(message)
        return message

    def ask(self, method, **params):
        "Send a command; its result."
        self.count += 1
        self.socket.send(json.dumps(dict(id=self.count, method=method, params=params)))
        while (message := self.hear()).get('id') != self.count: pass
        if 'error' in message: raise SystemExit(f"error: Chromium on {method}: {message['error']['message']}")
        return message['result']

    def open(self, path, width, dark=False):
        "Open a page at a width and measure it."
        self.events.clear()
        screen = dict(width=width, height=900, deviceScaleFactor=1, mobile=width < 600)
        shade = dict(name='prefers-color-scheme', value='dark' if dark else 'light')
        self.ask('Emulation.setDeviceMetricsOverride', **screen)
        self.ask('Emulation.setEmulatedMedia', features=[shade])
        self.ask('Page.navigate', url=path.resolve().as_uri())
        while not any(e['method'] == 'Page.loadEventFired' for e in self.events): self.hear()
        asked = dict(expression=MEASURE, awaitPromise=True, returnByValue=True)
        return self.ask('Runtime.evaluate', **asked)['result']['value']

    def errors(self):
        "What the console said of the page that is open."
        for event in self.events:
            p = event['params']
            if event['method'] == 'Runtime.exceptionThrown':
                yield p['exceptionDetails'].get('exception', {}).get('description', 'exception')
            elif event['method'] == 'Log.entryAdded' and p['entry']['level'] == 'error': yield p['entry']['text']
            elif event['method'] == 'Runtime.consoleAPICalled' and p['type'] == 'error': yield str(p['args'])[:200]

    def picture(self, file):
        "Save the first screen as a PNG."
        file.write_bytes(base64.b64decode(self.ask('Page.captureScreenshot', format='png')['data']))


def seen_faults(browser, path, name, pictures=None):
    "What a browser finds wrong with a page."
    stem = name.replace('/', '-').removesuffix('.html')
    for width in WIDTHS:
        seen = browser.open(path, width)
        yield from (f'{name} at {width} px: console: {text[:160]}' for text in browser.errors())
        yield from (f'{name} at {width} px: no picture {src[:80]}' for src in seen['missing'])
        if seen['wide'] > width: yield f"{name} at {width} px: scrolls sideways, it is {seen['wide']} px wide"
        for shade in ('light', 'dark') if pictures else ():
            browser.open(path, width, shade == 'dark')
            browser.picture(pictures / f'{stem}-{width}-{shade}.png')


def check(folder, only='', pictures=None, browser=None):
    "Every fault of a folder of pages."
    faults = read_faults(folder)
    if browser is None: return faults
    for path in sorted(folder.rglob('*.html')):
        name = path.relative_to(folder).as_posix()
        if {'_static', 'parts'} & set(path.parts) or not re.search(only, name): continue
        faults += seen_faults(browser, path, name, pictures)
    return faults


def main(args=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('folders', nargs='*', type=Path)
    parser.add_argument('--pictures', type=Path, help='save every first screen there, in light and dark')
    parser.add_argument('--only', default='', help='open only pages whose name has this (a regular expression)')
    asked = parser.parse_args(args)
    folders = asked.folders or [f for f in (ROOT / '_site', ROOT / 'reports' / 'ravdess') if f.is_dir()]
    if asked.pictures: asked.pictures.mkdir(parents=True, exist_ok=True)
    program, faults = chromium(), []
    if not program: print('no Chromium here (apt-get install chromium): only links are checked, not what is seen')
    for folder in folders:
        if program:
            with Browser(program) as browser: found = check(folder.resolve(), asked.only, asked.pictures, browser)
        else: found = check(folder.resolve())
        print(*found, f'{folder}: {len(found)} faults' if found else f'{folder}: fine', sep='\n')
        faults += found
    return 1 if faults else 0


if __name__ == '__main__': sys.exit(main())
