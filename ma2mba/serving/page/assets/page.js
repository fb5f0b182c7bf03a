// A session that has ended, or a server that was started again, needs the page once more.
const plainFetch = window.fetch;
window.fetch = async (...request) => {
  const answer = await plainFetch(...request);
  try {
    if (answer.status === 401 && Date.now() - Number(sessionStorage.reloaded || 0) > 10000) {
      sessionStorage.reloaded = Date.now();
      window.location.reload();
    }
  } catch {} // a browser that blocks storage blocks cookies too, and each new load would end here again
  return answer;
};
