// Before the first paint, and so neither a module nor deferred: the theme that was chosen here, or none for the system's.
try {
  const theme = JSON.parse(localStorage.getItem("feedlens.theme"));
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // Storage is switched off, or holds something else: the system's theme.
}
