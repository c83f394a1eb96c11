// What the theme lacks for keyboards and screen readers.
addEventListener("load", () => {
  for (const part of document.querySelectorAll("pre, .table-wrapper, p")) {
    if (part.scrollWidth > part.clientWidth) part.tabIndex = 0;
  }
  for (const caption of document.querySelectorAll("[role=heading]")) caption.ariaLevel = 2;
  document.querySelector(".sidebar-drawer").ariaLabel = "All pages";
  document.querySelector(".toc-drawer").ariaLabel = "This page";
});
